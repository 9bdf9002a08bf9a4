/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Everything a guest's sources need from the 32-bit runtime. */
#ifndef GUEST_H
#define GUEST_H

#include "boot.h"
#include "console.h"
#include "cpu.h"
#include "idt.h"
#include "probe.h"
#include "selectors.h"
#include "string.h"
#include "types.h"

#endif
