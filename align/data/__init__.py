"""From files to token rows: formats → examples → tokens → positions → batch."""
