// All functions for one instruction set: ISA, TARGET and WIDEST are defined before, and undefined after.

#define F(name) JOIN(name, ISA)
#define F4(name) JOIN(F(name), 4)
#define F8(name) JOIN(F(name), 8)
#define F16(name) JOIN(F(name), 16)
#define W(name) JOIN(F(name), WIDEST)

#define LANES 4
#define L F4
#include "lanes.h"
#undef L
#undef LANES
#if WIDEST >= 8
#define LANES 8
#define L F8
#define HALF F4
#include "lanes.h"
#undef HALF
#undef L
#undef LANES
#endif
#if WIDEST >= 16
#define LANES 16
#define L F16
#define HALF F8
#include "lanes.h"
#undef HALF
#undef L
#undef LANES
#endif
#include "descent.h"

#undef BY_LANES
#undef F
#undef F4
#undef F8
#undef F16
#undef W
#undef ISA
#undef WIDEST
#undef TARGET
