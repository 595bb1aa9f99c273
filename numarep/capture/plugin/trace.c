/* SPDX-License-Identifier: MIT */
/*
 * TCG plugin: writes what one vCPU executes between two marks.
 *
 * Nothing is instrumented until the guest arms it, so boot runs at full speed.
 * From then on every instruction and data access calls back here, but events
 * are written only inside a window.  Translations are made by a debug walk of
 * the guest's own tables, cached until the guest flushes its TLB: the plugin
 * API's physical addresses are wrong for a second memory backend, and its
 * instruction addresses are host pointers.
 *
 * QEMU 7.2 exports the functions declared below to a plugin, though no API
 * promises them; boot.py refuses another version.  A callback may read general
 * registers only in the first instruction of a block, when TCG has written them
 * back.  Every use here is one: after MOV to CR or INVLPG (they end a block),
 * at a function's entry, and at a return address.
 *
 * Output, in the folder "out": events.bin, rows.bin, tables.bin, and the guest
 * files the mailbox names.  decode.py has the same layouts.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qemu-plugin.h>

#include "../guest/marks.h"

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

typedef struct CPUState CPUState;

CPUState *qemu_get_cpu(int index);
int cpu_memory_rw_debug(CPUState *cpu, uint64_t va, void *buf, uint64_t bytes,
			bool is_write);
void cpu_physical_memory_rw(uint64_t pa, void *buf, uint64_t bytes,
			    bool is_write);
void tb_flush(CPUState *cpu);
int x86_cpu_write_elf64_qemunote(int (*write)(const void *, size_t, void *),
				 CPUState *cpu, void *opaque);

#define PAGE_SHIFT	12
#define PAGE_BYTES	4096ULL
#define PFN_MASK	0x000ffffffffff000ULL
#define PTE_PRESENT	(1ULL << 0)
#define PTE_WRITABLE	(1ULL << 1)
#define PTE_USER	(1ULL << 2)
#define PTE_LARGE	(1ULL << 7)
#define PTE_GLOBAL	(1ULL << 8)
#define PTE_NX		(1ULL << 63)
#define CR4_PGE		(1ULL << 7)

/* Event kinds: the first six are those of the trace format. */
enum {
	EVENT_FETCH, EVENT_LOAD, EVENT_STORE, EVENT_CR3, EVENT_INVLPG,
	EVENT_FLUSH,
	EVENT_FETCH_REP,	/* data events up to the next fetch are its own */
	EVENT_BEGIN, EVENT_ITERATION, EVENT_END,
};

struct event {
	uint32_t row;		/* of the first byte; BEGIN: the workload */
	uint32_t last_row;	/* of the last byte */
	uint16_t offset;	/* in the page */
	uint8_t kind;
	uint8_t bytes;
};

enum { FLAG_WRITABLE = 1, FLAG_EXECUTABLE = 2, FLAG_USER = 4, FLAG_GLOBAL = 8 };

struct row {
	int64_t vpn;
	int64_t pfn;
	int64_t table[4];	/* levels 4..1 */
	uint32_t leaf;
	uint32_t flags;
};

struct table_entry {
	uint32_t moment;	/* 2 * window, + 1 at its end */
	uint32_t level;
	uint64_t table;
	uint64_t index;
	uint64_t value;
};

/* -- State ----------------------------------------------------------------- */

static CPUState *cpu;
static bool armed, recording, pti;
static uint64_t root;		/* pfn of the top-level table in use */
static uint64_t cr4;
static uint32_t window;		/* number of the window, in order of capture */
static const char *folder;
static FILE *event_file, *row_file, *table_file;

static void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("numarep plugin: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	exit(3);
}

static FILE *open_output(const char *name)
{
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "wb");
	if (!file)
		die("cannot write %s", path);
	return file;
}

static void write_out(FILE *file, const void *data, size_t bytes)
{
	if (fwrite(data, 1, bytes, file) != bytes)
		die("a log is not writable (disk full?)");
}

/* -- Registers ------------------------------------------------------------- */

/* The body of QEMU's core-dump note, target/i386/arch_dump.c. */
struct registers {
	uint32_t version, size;
	uint64_t gpr[16];	/* rax rbx rcx rdx rsi rdi rsp rbp r8..r15 */
	uint64_t rip, rflags;
	struct {
		uint32_t selector, limit, flags, pad;
		uint64_t base;
	} segment[10];
	uint64_t cr[5];
};

enum { RAX = 0, RSI = 4, RSP = 6 };

#define NOTE_HEAD	20	/* Elf64_Nhdr and the padded name "QEMU" */

static int keep_note(const void *note, size_t bytes, void *to)
{
	if (bytes < NOTE_HEAD + sizeof(struct registers))
		die("unexpected core-dump note of %zu bytes", bytes);
	memcpy(to, (const char *)note + NOTE_HEAD, sizeof(struct registers));
	return 0;
}

static struct registers read_registers(void)
{
	struct registers now;

	x86_cpu_write_elf64_qemunote(keep_note, cpu, &now);
	return now;
}

static uint64_t read_u64(uint64_t va)
{
	uint64_t value;

	if (cpu_memory_rw_debug(cpu, va, &value, sizeof(value), false))
		die("no memory at %" PRIx64, va);
	return value;
}

/* -- Translations ---------------------------------------------------------- */

/*
 * A row is a translation as one root sees it.  Rows are kept per (root, vpn)
 * for ever; "checked" tells in which TLB generation the tables were last read.
 */
struct known {
	uint64_t root;
	int64_t vpn;
	uint32_t row;		/* number + 1; 0 is an empty slot */
	uint32_t checked;
};

static struct known *known;
static size_t known_slots = 1 << 16, known_used;
static struct row *rows;
static size_t row_count, row_room;
static uint32_t generation = 1;

/* One lookup per instruction goes through here. */
#define RECENT	1024
static struct {
	int64_t vpn;
	uint32_t generation;
	uint32_t row;
} recent[RECENT];

static uint64_t read_entry(uint64_t table, unsigned int index)
{
	uint64_t value;

	cpu_physical_memory_rw(table << PAGE_SHIFT | index * 8, &value,
			       sizeof(value), false);
	return value;
}

static struct row empty_row(int64_t vpn)
{
	return (struct row){
		.vpn = vpn, .pfn = -1,
		.table = { (int64_t)root, -1, -1, -1 },
	};
}

/* Read the tables as the hardware would; leaf stays 0 if nothing is mapped. */
static struct row walk(int64_t vpn)
{
	struct row row = empty_row(vpn);
	uint64_t table = root, rights = PTE_WRITABLE | PTE_USER, nx = 0;

	for (int level = 4; level >= 1; level--) {
		int shift = 9 * (level - 1);
		uint64_t entry = read_entry(table, vpn >> shift & 511);
		uint64_t within = (1ULL << shift) - 1;

		row.table[4 - level] = table;
		if (!(entry & PTE_PRESENT))
			break;
		rights &= entry;
		nx |= entry & PTE_NX;
		table = (entry & PFN_MASK) >> PAGE_SHIFT;
		if (level > 1 && (level == 4 || !(entry & PTE_LARGE)))
			continue;
		row.leaf = level;
		row.pfn = (table & ~within) | (vpn & within);
		row.flags = (rights & PTE_WRITABLE ? FLAG_WRITABLE : 0) |
			    (nx ? 0 : FLAG_EXECUTABLE) |
			    (rights & PTE_USER ? FLAG_USER : 0) |
			    (entry & PTE_GLOBAL ? FLAG_GLOBAL : 0);
		break;
	}
	return row;
}

static size_t slot_of(const struct known *table, size_t slots, uint64_t in_root,
		      int64_t vpn)
{
	uint64_t hash = (in_root * 0x9e3779b97f4a7c15ULL) ^
			((uint64_t)vpn * 0xc2b2ae3d27d4eb4fULL);
	size_t slot = (hash ^ hash >> 29) & (slots - 1);

	while (table[slot].row &&
	       (table[slot].root != in_root || table[slot].vpn != vpn))
		slot = (slot + 1) & (slots - 1);
	return slot;
}

static void grow_known(void)
{
	size_t slots = known_slots * 2;
	struct known *bigger = calloc(slots, sizeof(*bigger));

	if (!bigger)
		die("out of memory");
	for (size_t i = 0; i < known_slots; i++)
		if (known[i].row)
			bigger[slot_of(bigger, slots, known[i].root,
				       known[i].vpn)] = known[i];
	free(known);
	known = bigger;
	known_slots = slots;
}

static struct known *find_known(int64_t vpn)
{
	if (known_used * 2 > known_slots)
		grow_known();
	return &known[slot_of(known, known_slots, root, vpn)];
}

static uint32_t append_row(const struct row *row)
{
	if (row_count == row_room) {
		row_room = row_room ? row_room * 2 : 1 << 12;
		rows = realloc(rows, row_room * sizeof(*rows));
		if (!rows)
			die("out of memory");
	}
	rows[row_count] = *row;
	return row_count++;
}

/* Make "row" the current translation of its vpn, and return its number. */
static uint32_t note_translation(struct known *at, const struct row *row)
{
	if (!at->row) {
		known_used++;
		at->root = root;
		at->vpn = row->vpn;
		at->row = append_row(row) + 1;
	} else if (memcmp(&rows[at->row - 1], row, sizeof(*row))) {
		at->row = append_row(row) + 1;
	}
	at->checked = generation;
	return at->row - 1;
}

static uint32_t lookup_row(int64_t vpn, bool is_store)
{
	size_t slot = vpn & (RECENT - 1);
	struct known *at;
	struct row row;

	if (recent[slot].generation == generation && recent[slot].vpn == vpn &&
	    !(is_store && !(rows[recent[slot].row].flags & FLAG_WRITABLE)))
		return recent[slot].row;
	at = find_known(vpn);
	/* A store that succeeded proves a read-only translation is outdated. */
	if (at->checked != generation || !rows[at->row - 1].leaf ||
	    (is_store && !(rows[at->row - 1].flags & FLAG_WRITABLE))) {
		row = walk(vpn);
		note_translation(at, &row);
	}
	recent[slot].vpn = vpn;
	recent[slot].generation = generation;
	recent[slot].row = at->row - 1;
	return at->row - 1;
}

/* The operand of INVLPG: its last known translation, or a row without one. */
static uint32_t operand_row(int64_t vpn)
{
	struct known *at = find_known(vpn);
	struct row row = empty_row(vpn);

	return at->row ? at->row - 1 : note_translation(at, &row);
}

/* -- Events ---------------------------------------------------------------- */

static void put_event(uint8_t kind, uint32_t row, uint32_t last_row,
		      uint16_t offset, uint8_t bytes)
{
	struct event event = {
		.row = row, .last_row = last_row, .offset = offset,
		.kind = kind, .bytes = bytes,
	};

	write_out(event_file, &event, sizeof(event));
}

static void put_access(uint8_t kind, uint64_t va, unsigned int bytes)
{
	bool is_store = kind == EVENT_STORE;
	int64_t vpn = (int64_t)va >> PAGE_SHIFT;
	int64_t last_vpn = (int64_t)(va + bytes - 1) >> PAGE_SHIFT;
	uint32_t row = lookup_row(vpn, is_store);

	put_event(kind, row, vpn == last_vpn ? row : lookup_row(last_vpn, is_store),
		  va & (PAGE_BYTES - 1), bytes);
}

/* -- Roots, and what their tables hold ------------------------------------- */

#define MAX_ROOTS	4096
static uint64_t roots[MAX_ROOTS];
static size_t root_count;

static void add_root(uint64_t pfn)
{
	for (size_t i = 0; i < root_count; i++)
		if (roots[i] == pfn)
			return;
	if (root_count == MAX_ROOTS)
		die("more than %d page-table roots", MAX_ROOTS);
	roots[root_count++] = pfn;
}

/* Under PTI a PGD is two pages: the kernel's half and, next to it, the user's. */
static void add_pgd(uint64_t pfn)
{
	if (pti)
		pfn &= ~1ULL;
	add_root(pfn);
	if (pti)
		add_root(pfn + 1);
}

static void remove_pgd(uint64_t pfn)
{
	size_t kept = 0;

	for (size_t i = 0; i < root_count; i++)
		if (roots[i] != pfn && !(pti && roots[i] == pfn + 1))
			roots[kept++] = roots[i];
	root_count = kept;
}

/* Each table page is written once a moment, whoever else links to it. */
static uint8_t *seen_table;
static size_t seen_pages;

static void dump_table(uint64_t table, int level)
{
	uint64_t entries[512];

	if (table >= seen_pages || seen_table[table])
		return;
	seen_table[table] = 1;
	cpu_physical_memory_rw(table << PAGE_SHIFT, entries, sizeof(entries),
			       false);
	for (unsigned int i = 0; i < 512; i++) {
		struct table_entry entry = {
			.moment = window * 2 + !recording, .level = level,
			.table = table, .index = i, .value = entries[i],
		};

		if (!(entries[i] & PTE_PRESENT))
			continue;
		write_out(table_file, &entry, sizeof(entry));
		if (level > 1 && (level == 4 || !(entries[i] & PTE_LARGE)))
			dump_table((entries[i] & PFN_MASK) >> PAGE_SHIFT,
				   level - 1);
	}
}

static void dump_tables(void)
{
	memset(seen_table, 0, seen_pages);
	for (size_t i = 0; i < root_count; i++)
		dump_table(roots[i], 4);
}

/* -- Guest symbols the plugin itself needs --------------------------------- */

static uint64_t pgd_alloc_va, pgd_free_va, pgd_return_va;

static uint64_t find_symbol(const char *text, char type, const char *name)
{
	char pattern[80];
	const char *at;

	snprintf(pattern, sizeof(pattern), " %c %s\n", type, name);
	at = strstr(text, pattern);
	if (!at || at - text < 16)
		die("the guest's kallsyms has no %s", name);
	return strtoull(at - 16, NULL, 16);
}

/* Where the kernel put its address ranges: variables, so their values are read. */
static const char *const base_names[] = {
	"page_offset_base", "vmalloc_base", "vmemmap_base",
};
#define BASES	(sizeof(base_names) / sizeof(*base_names))
static uint64_t base_va[BASES];

static void learn_symbols(const char *symbols)
{
	pgd_alloc_va = find_symbol(symbols, 'T', "pgd_alloc");
	pgd_free_va = find_symbol(symbols, 'T', "pgd_free");
	for (size_t i = 0; i < BASES; i++)
		base_va[i] = find_symbol(symbols, 'D', base_names[i]);
}

static uint64_t pfn_of(uint64_t va)
{
	struct row row = walk((int64_t)va >> PAGE_SHIFT);

	if (!row.leaf)
		die("no translation of %" PRIx64, va);
	return row.pfn;
}

/* A mark runs in user mode: under PTI only the kernel's half maps its data. */
static void write_bases(void)
{
	FILE *file = open_output("bases");
	uint64_t user_root = root, value, pa;

	if (pti)
		root &= ~1ULL;
	for (size_t i = 0; i < BASES; i++) {
		pa = pfn_of(base_va[i]) << PAGE_SHIFT |
		     (base_va[i] & (PAGE_BYTES - 1));
		cpu_physical_memory_rw(pa, &value, sizeof(value), false);
		fprintf(file, "%s %" PRIx64 "\n", base_names[i], value);
	}
	root = user_root;
	fclose(file);
}

static void copy_guest_file(void)
{
	struct mailbox box;
	char *data;
	FILE *file;

	if (cpu_memory_rw_debug(cpu, MAILBOX_VA, &box, sizeof(box), false))
		die("no mailbox");
	data = malloc(box.bytes + 1);
	if (!data || cpu_memory_rw_debug(cpu, box.va, data, box.bytes, false))
		die("cannot read the guest's %s", box.name);
	data[box.bytes] = 0;
	file = open_output(box.name);
	write_out(file, data, box.bytes);
	fclose(file);
	if (!strcmp(box.name, "kallsyms"))
		learn_symbols(data);
	free(data);
}

/* -- What a mark does ------------------------------------------------------ */

static void set_root(uint64_t cr3)
{
	root = (cr3 & PFN_MASK) >> PAGE_SHIFT;
	add_pgd(root);
	generation++;
}

static void arm(void)
{
	struct registers now = read_registers();

	if (!pgd_alloc_va)
		die("armed before the guest's symbols were known");
	armed = true;
	cr4 = now.cr[4];
	set_root(now.cr[3]);
	write_bases();
	tb_flush(cpu);
}

static void begin_window(uint32_t workload)
{
	if (recording)
		die("a window begins inside another");
	recording = true;
	generation++;
	put_event(EVENT_BEGIN, workload, 0, 0, 0);
	dump_tables();
}

static void end_window(void)
{
	if (!recording)
		return;
	recording = false;
	put_event(EVENT_END, 0, 0, 0, 0);
	dump_tables();
	window++;
}

static void close_logs(void)
{
	write_out(row_file, rows, row_count * sizeof(*rows));
	if (fclose(event_file) | fclose(row_file) | fclose(table_file))
		die("a log is not writable (disk full?)");
}

static void on_mark(unsigned int index, void *payload)
{
	uint32_t code = (uintptr_t)payload & ~MARK_MASK;

	(void)index;
	cpu = qemu_get_cpu(0);
	if (code == MARK_FILE)
		copy_guest_file();
	else if (code == MARK_ARM)
		arm();
	else if (code == MARK_DONE)
		close_logs();
	else if (code == MARK_END)
		end_window();
	else if (code >= MARK_BEGIN)
		begin_window(code - MARK_BEGIN);
	else if (code == MARK_ITERATION && recording)
		put_event(EVENT_ITERATION, 0, 0, 0, 0);
}

/* -- What an instruction does ---------------------------------------------- */

enum { AFTER_NOTHING, AFTER_CR3, AFTER_CR4, AFTER_INVLPG };

/* All that is known of an instruction when it is translated; never freed. */
struct insn {
	uint64_t va;
	uint8_t bytes;
	bool is_rep;
	uint8_t after;
	/* INVLPG's operand: gpr numbers in registers' order, or -1 */
	int8_t base, index;
	uint8_t scale;
	int64_t displacement;
};

static const struct insn *pending;	/* its effect shows at the next one */
static const struct insn *last_rep;

static void finish_invlpg(const struct insn *insn)
{
	struct registers now = read_registers();
	uint64_t va = insn->displacement;

	if (insn->base >= 0)
		va += now.gpr[insn->base];
	if (insn->index >= 0)
		va += now.gpr[insn->index] << insn->scale;
	if (recording) {
		uint32_t row = operand_row((int64_t)va >> PAGE_SHIFT);

		put_event(EVENT_INVLPG, row, row, 0, 0);
	}
	generation++;
}

static void put_root_event(uint8_t kind)
{
	struct row row = empty_row(0);
	uint32_t number = append_row(&row);

	put_event(kind, number, number, 0, 0);
}

static void finish_cr3(void)
{
	set_root(read_registers().cr[3]);
	if (recording)
		put_root_event(EVENT_CR3);
}

static void finish_cr4(void)
{
	uint64_t now = read_registers().cr[4];

	if ((now ^ cr4) & CR4_PGE) {
		generation++;
		if (recording)
			put_root_event(EVENT_FLUSH);
	}
	cr4 = now;
}

static void finish_pending(void)
{
	const struct insn *insn = pending;

	pending = NULL;
	if (insn->after == AFTER_CR3)
		finish_cr3();
	else if (insn->after == AFTER_CR4)
		finish_cr4();
	else
		finish_invlpg(insn);
}

/* Learn of every PGD: one that never ran (a child just forked) has tables too. */
static void follow_pgds(uint64_t va)
{
	if (va == pgd_alloc_va)
		pgd_return_va = read_u64(read_registers().gpr[RSP]);
	else if (va == pgd_free_va)
		remove_pgd(pfn_of(read_registers().gpr[RSI]));
	else if (read_registers().gpr[RAX])
		add_pgd(pfn_of(read_registers().gpr[RAX]));
}

static void on_insn(unsigned int index, void *opaque)
{
	const struct insn *insn = opaque;

	(void)index;
	if (pending)
		finish_pending();
	if (insn->after)
		pending = insn;
	if (insn->va == pgd_alloc_va || insn->va == pgd_free_va ||
	    insn->va == pgd_return_va)
		follow_pgds(insn->va);
	if (!recording)
		return;
	/* QEMU executes a REP instruction once per element: it is fetched once. */
	if (insn->is_rep && last_rep && last_rep->va == insn->va)
		return;
	last_rep = insn->is_rep ? insn : NULL;
	put_access(insn->is_rep ? EVENT_FETCH_REP : EVENT_FETCH, insn->va,
		   insn->bytes);
}

static void on_access(unsigned int index, qemu_plugin_meminfo_t info,
		      uint64_t va, void *opaque)
{
	unsigned int bytes = 1u << qemu_plugin_mem_size_shift(info);
	unsigned int rw = info >> 16 & QEMU_PLUGIN_MEM_RW;

	(void)index;
	(void)opaque;
	if (!recording)
		return;
	if (rw & QEMU_PLUGIN_MEM_R)
		put_access(EVENT_LOAD, va, bytes);
	if (rw & QEMU_PLUGIN_MEM_W)
		put_access(EVENT_STORE, va, bytes);
}

/* -- Translation ----------------------------------------------------------- */

static const int8_t gpr_of[16] = {	/* the ISA's order -> registers.gpr */
	0, 2, 3, 1, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15,
};

static bool is_string_op(uint8_t opcode)
{
	return (opcode >= 0xa4 && opcode <= 0xa7) ||
	       (opcode >= 0xaa && opcode <= 0xaf) ||
	       (opcode >= 0x6c && opcode <= 0x6f);
}

static int32_t read_i32(const uint8_t *at)
{
	int32_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

/* Decode the memory operand at its ModRM byte (64-bit addressing). */
static void decode_operand(struct insn *insn, const uint8_t *at, uint8_t rex)
{
	int mod = at[0] >> 6, rm = at[0] & 7;
	const uint8_t *disp = at + 1;

	insn->base = gpr_of[rm | (rex & 1) << 3];
	insn->index = -1;
	if (rm == 4) {
		int sib_index = (at[1] >> 3 & 7) | (rex & 2) << 2;

		insn->scale = at[1] >> 6;
		insn->index = sib_index == 4 ? -1 : gpr_of[sib_index];
		insn->base = gpr_of[(at[1] & 7) | (rex & 1) << 3];
		disp++;
		if (mod == 0 && (at[1] & 7) == 5) {
			insn->base = -1;
			mod = 2;
		}
	} else if (mod == 0 && rm == 5) {	/* relative to the next one */
		insn->base = -1;
		insn->displacement = insn->va + insn->bytes + read_i32(disp);
		return;
	}
	if (mod == 1)
		insn->displacement = (int8_t)*disp;
	else if (mod == 2)
		insn->displacement = read_i32(disp);
}

static void decode(struct insn *insn, const uint8_t *code)
{
	const uint8_t *at = code;
	bool has_rep = false;
	uint8_t rex = 0;

	for (;; at++) {
		if (*at == 0xf2 || *at == 0xf3)
			has_rep = true;
		else if (!memchr("\x66\x67\x2e\x36\x3e\x26\x64\x65\xf0", *at, 9))
			break;
	}
	if ((*at & 0xf0) == 0x40)
		rex = *at++;
	insn->is_rep = has_rep && is_string_op(*at);
	if (at[0] != 0x0f)
		return;
	if (at[1] == 0x22 && (at[2] >> 3 & 7) == 3)
		insn->after = AFTER_CR3;
	else if (at[1] == 0x22 && (at[2] >> 3 & 7) == 4)
		insn->after = AFTER_CR4;
	else if (at[1] == 0x01 && (at[2] >> 3 & 7) == 7 && at[2] < 0xc0) {
		insn->after = AFTER_INVLPG;
		decode_operand(insn, at + 2, rex);
	}
}

static uint32_t mark_of(const struct qemu_plugin_insn *handle)
{
	const uint8_t *code = qemu_plugin_insn_data(handle);
	uint32_t payload;

	if (qemu_plugin_insn_size(handle) != 8 ||
	    memcmp(code, "\x0f\x1f\x84\x00", 4))
		return 0;
	memcpy(&payload, code + 4, sizeof(payload));
	return (payload & MARK_MASK) == MARK_MAGIC ? payload : 0;
}

static void instrument(struct qemu_plugin_insn *handle, uint64_t va)
{
	struct insn *insn = calloc(1, sizeof(*insn));
	uint8_t code[32] = { 0 };	/* room to look past a short one */

	if (!insn)
		die("out of memory");
	insn->va = va;
	insn->bytes = qemu_plugin_insn_size(handle);
	memcpy(code, qemu_plugin_insn_data(handle), insn->bytes);
	decode(insn, code);
	qemu_plugin_register_vcpu_insn_exec_cb(handle, on_insn,
					       QEMU_PLUGIN_CB_R_REGS, insn);
	qemu_plugin_register_vcpu_mem_cb(handle, on_access,
					 QEMU_PLUGIN_CB_NO_REGS,
					 QEMU_PLUGIN_MEM_RW, NULL);
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb);
	bool is_user = qemu_plugin_tb_vaddr(tb) >> 47 == 0;

	(void)id;
	for (size_t i = 0; i < count && (is_user || armed); i++) {
		struct qemu_plugin_insn *handle = qemu_plugin_tb_get_insn(tb, i);
		uint32_t mark = is_user ? mark_of(handle) : 0;

		if (mark)
			qemu_plugin_register_vcpu_insn_exec_cb(
				handle, on_mark, QEMU_PLUGIN_CB_NO_REGS,
				(void *)(uintptr_t)mark);
		else if (armed)
			instrument(handle, qemu_plugin_insn_vaddr(handle));
	}
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id,
					   const qemu_info_t *info, int argc,
					   char **argv)
{
	unsigned long megabytes = 0;

	if (strcmp(info->target_name, "x86_64") || info->system.max_vcpus != 1)
		die("needs an x86_64 machine with one vCPU");
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "out=", 4))
			folder = strdup(argv[i] + 4);
		else if (!strncmp(argv[i], "pti=", 4))
			pti = !strcmp(argv[i] + 4, "on");
		else if (!strncmp(argv[i], "mib=", 4))
			megabytes = strtoul(argv[i] + 4, NULL, 10);
	}
	if (!folder || !megabytes)
		die("needs out=FOLDER, pti=on|off and mib=MEMORY");
	known = calloc(known_slots, sizeof(*known));
	seen_pages = megabytes << 8;
	seen_table = calloc(seen_pages, 1);
	if (!known || !seen_table)
		die("out of memory");
	event_file = open_output("events.bin");
	row_file = open_output("rows.bin");
	table_file = open_output("tables.bin");
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	return 0;
}
