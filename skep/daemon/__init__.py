"""skepd: the composition root. One process per machine, always an agent, also a manager while its role says so."""
