"""Private and changing behaviour of other libraries, a file per library: a release has one place to break.

Every function says why nothing public would do, and the version of the library it was last checked with;
`tests/test_libraries.py` tries each of them by itself. INC's are in `inc_mp_plugin.inc.backend`.
"""
