"""`coop demo`: the whole cooperative on one machine, told in numbered steps.

Real 1988 records of four hospitals; simulated people whose keys are marked `custody: demo`. The
hospitals named are not members. Nothing here has a back door: the demo speaks to the hub and the
nodes exactly as the portal, the command line and the hospitals' staff do.

`story` tells it · `stage` starts and stops the processes · `people` are the simulated patients ·
`identity` is the loopback OpenID provider · `measure` counts memory and CPU.
"""
