"""Generated from proto/asympo/v1 by deploy/local/gen_proto.sh; never edited."""
