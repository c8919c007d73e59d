"""The wire, generated from `protos/vaeserve/v1` by `make generate`; never edited."""
