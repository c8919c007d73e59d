"""The Open Inference Protocol, generated from `protos/vaeserve_service/oip` by `make generate`; never edited."""
