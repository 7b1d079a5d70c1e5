"""The journal of a data dir: paid sessions, receipts and orders, on disk before they are acted on."""
