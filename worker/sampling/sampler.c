#include "worker/sampling/sampler.h"
