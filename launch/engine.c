#include "launch/engine.h"
