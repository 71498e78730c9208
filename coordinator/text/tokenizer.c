#include "coordinator/text/tokenizer.h"
