"""Instance search for Milvus with class-weighted convolutional features."""
