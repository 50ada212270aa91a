"""Logging to a file that rotates, to stderr, and with a format of one's own."""

import logging, logging.handlers, os, sys

logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
logger = logging.getLogger("shop.till")
logger.debug("opened with %d coins", 12)
try:
    {}["x"]
except KeyError:
    logger.exception("nothing there")
handler = logging.handlers.RotatingFileHandler("app.log", maxBytes=200, backupCount=2)
handler.setFormatter(logging.Formatter("{lineno} {message}", style="{"))
logger.addHandler(handler)
logger.propagate = False
for n in range(30):
    logger.warning("line number %02d", n)
handler.close()
print(sorted(name for name in os.listdir() if name.startswith("app.log")), open("app.log").read().splitlines()[-1])
