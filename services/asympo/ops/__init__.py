"""Commands on a run that is there: its log, checkpoints and backups. None changes what it trains on."""
