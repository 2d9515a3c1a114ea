"""The command line: ``sdnet``. Plugins' commands use `sdnet_core.cli.kit`."""
