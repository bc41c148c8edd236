"""Generated from proto/nodediag by `make proto`; never edited."""
