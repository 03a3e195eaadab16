"""The three papers' claims in miniature: PROTOCOL.md says what is compared, the package's main module runs it."""
