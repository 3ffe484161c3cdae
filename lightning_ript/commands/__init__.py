"""The program's own commands, beside LightningCLI's `fit` and `validate`."""
