"""Generated traffic: SUMO worlds recorded as WOMD ``Scenario`` protos, for use where no real scenarios are given.

A world is one random road network with its demand, simulated once and cut into scenes. The modules in the order of
the work: ``skeleton`` and ``network`` draw and build the roads, ``demand`` draws the road users, ``sumo`` runs SUMO
and records it, ``motion`` turns the record into smooth box poses, ``surface`` and ``roadmap`` make the map,
``signals`` the lights, ``window`` picks scenes and tracks to predict, ``protos`` writes them, ``world`` joins all.
"""
