"""A policy drives some of the vehicles of a running SUMO world: ``area`` draws the world, ``session`` is SUMO,
``setting`` is what the policy sees of it, ``drivers`` decide, ``drive`` runs, ``measuring`` counts and adds up.
"""
