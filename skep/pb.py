"""Every message of proto/skep/v1 under one name: `from skep import pb`, then `pb.Task`.

Only messages and enumerations; the gRPC stubs are imported from `skep.v1` by the few modules that speak gRPC.
"""

from skep.v1.ca_pb2 import *
from skep.v1.channel_pb2 import *
from skep.v1.dispatcher_pb2 import *
from skep.v1.objects_pb2 import *
from skep.v1.raft_pb2 import *
from skep.v1.specs_pb2 import *
from skep.v1.store_pb2 import *
from skep.v1.types_pb2 import *
