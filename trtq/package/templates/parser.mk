# Builds the parser that config_infer_primary.txt names: make -C parser
DEEPSTREAM ?= /opt/nvidia/deepstream/deepstream
CUDA ?= /usr/local/cuda
CXXFLAGS ?= -O2 -Wall

libnvdsinfer_trtq.so: nvdsinfer_trtq.cpp
	$(CXX) -std=c++17 $(CXXFLAGS) -shared -fPIC -I$(DEEPSTREAM)/sources/includes -I$(CUDA)/include -o $@ $<
