"""The method as functions of arrays: no files, no network, no Milvus."""
