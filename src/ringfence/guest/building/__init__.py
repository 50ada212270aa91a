"""What runs in a build sandbox on our behalf: text that goes in through the channel, as a kernel does."""
