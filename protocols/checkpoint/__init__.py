"""A paid session's receipts and best voucher, served again to whoever holds its voucher key."""
