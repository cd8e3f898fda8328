"""`python -m inc_mp_plugin.cli`: the same as `inc-mp`."""

from inc_mp_plugin.cli.main import main

if __name__ == "__main__":
    main()
