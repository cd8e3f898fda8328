"""A stand-in for Intel Gaudi's Python software, for tests on a CPU.

It holds the names that optimum-habana 1.21 and Intel Neural Compressor import, with reference versions of
Gaudi's operators in plain torch. The environment variable HABANA_STUB_DEVICE says which device it pretends
to be.
"""
