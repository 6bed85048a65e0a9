"""The subcommands that make machines a cluster: `dpool start`, `stop`, `status`, `token`."""
