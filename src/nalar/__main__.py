"""`python -m nalar` is the command `nalar`."""

import sys

from nalar.cli.main import main

sys.exit(main())
