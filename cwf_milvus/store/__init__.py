"""Encodings as rows of Milvus, with the encoder and the ledger beside them."""
