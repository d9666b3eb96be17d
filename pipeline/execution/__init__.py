"""How work is done, whatever the work is: workers, caches, locks, manifests, progress, devices."""
