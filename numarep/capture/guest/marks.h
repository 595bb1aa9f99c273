/* SPDX-License-Identifier: MIT */
/*
 * What the guest program says to the plugin.
 *
 * A mark is the 8-byte NOP "0f 1f 84 00 imm32" in user space: it does nothing
 * on any CPU, costs one instruction, and the plugin recognises it when its
 * translation block is made.  The kernel and compilers pad with the same NOP,
 * but with an immediate of zero, so every immediate here has MARK_MAGIC set.
 */
#ifndef NUMAREP_MARKS_H
#define NUMAREP_MARKS_H

#define MARK_MAGIC	0x4e520000	/* "NR" */
#define MARK_MASK	0xffff0000

#define MARK_FILE	1	/* the mailbox names a file to copy out */
#define MARK_ARM	2	/* instrument every block from now on */
#define MARK_ITERATION	3	/* a loop iteration starts */
#define MARK_END	4	/* the measured window ends */
#define MARK_DONE	5	/* all workloads ran; close the logs */
#define MARK_BEGIN	0x100	/* + workload: the measured window begins */

/* Mapped by the guest at a fixed place, so no register has to be read. */
#define MAILBOX_VA	0x10000000UL

struct mailbox {
	unsigned long va;
	unsigned long bytes;
	char name[112];
};

#endif
