"""What the gateway costs and keeps: ingest, an agent's request, sessions while generators die, garbage.

Everything runs as processes of its own on loopback: broker, gateway, engines that answer at once. What is
measured is the gateway, so it gets one core to itself where the machine has two.
"""
