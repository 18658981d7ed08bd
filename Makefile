.PHONY: proto
proto:
	./deploy/proto.sh
