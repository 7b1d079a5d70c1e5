"""Programs that ask through the gateway: what they read, how they are started, and what is put back after."""
