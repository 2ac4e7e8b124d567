"""``python -m cwf_milvus.cli``."""

import sys

from cwf_milvus.cli.program import main

sys.exit(main())
