"""Generated from proto/third_party by `make proto`; never edited."""
