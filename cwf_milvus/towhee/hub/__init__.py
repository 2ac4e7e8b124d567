"""The operators in the layout of Towhee's hub, a folder each."""
