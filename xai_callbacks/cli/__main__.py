"""`python -m xai_callbacks.cli`."""

import sys

from xai_callbacks.cli.main import main

sys.exit(main())
