"""What is known of devices from measuring them: points of named devices, and the probe of this machine."""
