"""Ground truths of the field, and a JSON format, as one kind of data set."""
