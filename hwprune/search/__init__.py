"""A run: settings, folder, budget controller, the stages, and the verdict measured on the device."""
