#include "check.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace billhook {

// No side, stride or count is larger, so that no product of the few that are multiplied here overflows 64 bits.
constexpr int64_t LARGEST = 1 << 24, LARGEST_ARENA = int64_t{1} << 40;

static const char *const KINDS[BH_KINDS] = {"load",   "store", "dense",    "hybrid", "depthwise", "maxpool", "avgpool", "global",
                                            "add",    "multiply", "scale", "unary",  "gather",    "copy",    "flatten", "softmax"};

static_assert(sizeof(bh_view) == 56 && sizeof(bh_step) == 296 && sizeof(bh_header) == 128, "Python writes these structs");
static_assert(offsetof(bh_view, pixel) == 24 && offsetof(bh_view, type) == 48, "Python writes these structs");
static_assert(offsetof(bh_step, tile) == 48 && offsetof(bh_step, in) == 80 && offsetof(bh_step, out) == 192 &&
                  offsetof(bh_step, values) == 248 && offsetof(bh_step, count) == 288,
              "Python writes these structs");
static_assert(offsetof(bh_header, arena) == 24 && offsetof(bh_header, channels) == 48 && offsetof(bh_header, scale) == 64 &&
                  offsetof(bh_header, named) == 96,
              "Python writes these structs");

bool Complaint::say(const char *format, ...) const {
    if (!text || !room) return false;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, room, format, arguments);
    va_end(arguments);
    return false;
}

static long long wide(int64_t value) { return static_cast<long long>(value); }
static int64_t up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
static int size_of(int type) { return type == BH_BF16 ? 2 : 4; }
static bool within(int64_t value, int64_t from, int64_t to) { return value >= from && value <= to; }

int step_type(const bh_step &step) { return step.kind == BH_STORE ? step.in.type : step.out.type; }

bool check_header(const void *program, size_t bytes, int lanes, const Complaint &complaint) {
    if (!program || reinterpret_cast<uintptr_t>(program) % BH_ALIGN) return complaint.say("the program is not aligned to 64 bytes");
    if (bytes < sizeof(bh_header)) return complaint.say("%zu bytes are too few for a header", bytes);
    const bh_header &h = *static_cast<const bh_header *>(program);
    if (std::memcmp(h.magic, "BILLHOOK", 8)) return complaint.say("these bytes are no program");
    if (h.version != BH_VERSION) return complaint.say("version %d, this library reads version %d", h.version, BH_VERSION);
    if (h.lanes != lanes) return complaint.say("written for vectors of %d lanes, these have %d", h.lanes, lanes);
    if (h.type != BH_F32 && h.type != BH_BF16) return complaint.say("unknown type %d", h.type);
    if (h.bytes < 0 || static_cast<uint64_t>(h.bytes) != bytes) return complaint.say("%zu bytes, the header says %lld", bytes, wide(h.bytes));
    if (!within(h.steps, 1, LARGEST)) return complaint.say("%d steps", h.steps);
    const int64_t end = static_cast<int64_t>(sizeof(bh_header)) + static_cast<int64_t>(h.steps) * static_cast<int64_t>(sizeof(bh_step));
    if (h.weights % BH_ALIGN || h.weights < end || h.weights > h.bytes)
        return complaint.say("weights at %lld of %lld bytes, %d steps end at %lld", wide(h.weights), wide(h.bytes), h.steps, wide(end));
    if (!within(h.arena, 0, LARGEST_ARENA)) return complaint.say("an arena of %lld bytes", wide(h.arena));
    if (!within(h.channels, 1, LARGEST) || !within(h.height, 1, LARGEST) || !within(h.width, 1, LARGEST) ||
        static_cast<int64_t>(h.height) * h.width > LARGEST || static_cast<int64_t>(h.height) * h.width * h.channels > INT32_MAX)
        return complaint.say("images of %d x %d x %d", h.channels, h.height, h.width);
    if (h.outputs < 0) return complaint.say("%d outputs", h.outputs);
    if (!within(h.named, 0, 1) || (h.named && h.channels > 4)) return complaint.say("scales of %d channels, there is room for 4", h.channels);
    for (int32_t word : h.reserved)
        if (word) return complaint.say("a reserved word is not zero");
    return true;
}

namespace {

class Checker {
public:
    Checker(const bh_header &header, const bh_step &step, const unsigned char *weights, const Kernels &kernels, int number,
            const Complaint &complaint)
        : h(header), s(step), base(weights), kernels(kernels), number(number), complaint(complaint), lanes(kernels.lanes) {}
    bool check();

private:
    const bh_header &h;
    const bh_step &s;
    const unsigned char *base;
    const Kernels &kernels;
    const int number;
    const Complaint &complaint;
    const int lanes;

    __attribute__((format(printf, 2, 3))) bool no(const char *format, ...) const;
    bool view(const bh_view &v, const char *name, bool whole) const;
    bool same(const bh_view &a, const bh_view &b, const char *names) const;
    bool weight(int64_t offset, int64_t bytes, const char *name) const;
    bool numbers() const;
    bool window_in_halo() const;
    bool clipped_windows() const;
    bool residual() const;
    bool convolution() const;
    bool stream() const;
    bool item(int64_t offset) const;
    bool index(int from_kind) const;
};

bool Checker::no(const char *format, ...) const {
    char line[200];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    const char *kind = within(s.kind, 0, BH_KINDS - 1) ? KINDS[s.kind] : "?";
    return complaint.say("step %d (%s): %s", number, kind, line);
}

// A map with its halo and its padded channels lies inside the arena. `whole`: vectors are read and written, so its pixels are
// aligned and its channels fill lanes; else numbers one by one, anywhere.
bool Checker::view(const bh_view &v, const char *name, bool whole) const {
    if (v.type != BH_F32 && v.type != BH_BF16) return no("%s has unknown type %d", name, v.type);
    if (v.reserved) return no("a reserved word of %s is not zero", name);
    if (!within(v.height, 1, LARGEST) || !within(v.width, 1, LARGEST) || !within(v.channels, 1, LARGEST) ||
        !within(v.padded, v.channels, LARGEST) || static_cast<int64_t>(v.height) * v.width > LARGEST)
        return no("%s has %d x %d pixels of %d (%d) channels", name, v.height, v.width, v.channels, v.padded);
    if (!within(v.top, 0, LARGEST) || !within(v.left, 0, LARGEST) || !within(v.bottom, 0, LARGEST) || !within(v.right, 0, LARGEST))
        return no("%s has a halo of %d, %d, %d, %d", name, v.top, v.left, v.bottom, v.right);
    const int64_t across = static_cast<int64_t>(v.left) + v.width + v.right;
    if (v.pixel < v.padded || v.row < v.pixel * across)
        return no("%s: pixels of %d channels are %d apart, rows of %lld pixels %d", name, v.padded, v.pixel, wide(across), v.row);
    const int64_t size = size_of(v.type), aligned = whole ? 16 * size : size;
    if (v.offset < 0 || v.offset > h.arena || v.offset % aligned || v.pixel * size % aligned || v.row * size % aligned)
        return no("%s lies at %lld, its pixels and rows %d and %d apart: not on %lld bytes", name, wide(v.offset), v.pixel, v.row, wide(aligned));
    if (whole && v.padded % lanes) return no("%s has %d channels, not a multiple of %d", name, v.padded, lanes);
    const int64_t first = static_cast<int64_t>(v.top) * v.row + static_cast<int64_t>(v.left) * v.pixel;
    const int64_t end = (static_cast<int64_t>(v.height) - 1 + v.bottom) * v.row +
                        (static_cast<int64_t>(v.width) - 1 + v.right) * v.pixel + v.padded;
    if (first > v.offset / size || end > (h.arena - v.offset) / size)
        return no("%s reaches outside the arena of %lld bytes", name, wide(h.arena));
    return true;
}

bool Checker::same(const bh_view &a, const bh_view &b, const char *names) const {
    if (a.height != b.height || a.width != b.width || a.channels != b.channels || a.padded < b.padded)
        return no("%s differ: %d x %d x %d (%d), %d x %d x %d (%d)", names, a.height, a.width, a.channels, a.padded, b.height, b.width,
                  b.channels, b.padded);
    return true;
}

bool Checker::weight(int64_t offset, int64_t bytes, const char *name) const {
    const int64_t room = h.bytes - h.weights;
    if (offset < 0 || offset % BH_ALIGN || offset > room || bytes > room - offset)
        return no("%s at %lld, %lld bytes: not inside the %lld bytes of weights", name, wide(offset), wide(bytes), wide(room));
    return true;
}

// Sides of windows and the planner's choices.
bool Checker::numbers() const {
    if (!within(s.kernel_y, 1, LARGEST) || !within(s.kernel_x, 1, LARGEST) || !within(s.stride_y, 1, LARGEST) ||
        !within(s.stride_x, 1, LARGEST) || !within(s.dilation_y, 1, LARGEST) || !within(s.dilation_x, 1, LARGEST) ||
        !within(s.pad_top, 0, LARGEST) || !within(s.pad_left, 0, LARGEST) || !within(s.groups, 1, LARGEST) ||
        static_cast<int64_t>(s.kernel_y) * s.kernel_x > LARGEST)
        return no("a window of %d x %d, stride %d x %d, dilation %d x %d, padding %d, %d, %d groups", s.kernel_y, s.kernel_x, s.stride_y,
                  s.stride_x, s.dilation_y, s.dilation_x, s.pad_top, s.pad_left, s.groups);
    if (!within(s.tile, 0, 64) || !within(s.rows, 0, 64) || !within(s.order, 0, 1) || !within(s.split, 0, 1))
        return no("tile %d, rows %d, order %d, split %d", s.tile, s.rows, s.order, s.split);
    return true;
}

// Every tap of every window lies in the input or its halo.
bool Checker::window_in_halo() const {
    const int64_t bottom = (static_cast<int64_t>(s.out.height) - 1) * s.stride_y - s.pad_top + (static_cast<int64_t>(s.kernel_y) - 1) * s.dilation_y;
    const int64_t right = (static_cast<int64_t>(s.out.width) - 1) * s.stride_x - s.pad_left + (static_cast<int64_t>(s.kernel_x) - 1) * s.dilation_x;
    if (s.pad_top > s.in.top || s.pad_left > s.in.left || bottom >= static_cast<int64_t>(s.in.height) + s.in.bottom ||
        right >= static_cast<int64_t>(s.in.width) + s.in.right)
        return no("windows reach beyond the halo of in: padding %d, %d to pixel %lld, %lld", s.pad_top, s.pad_left, wide(bottom), wide(right));
    return true;
}

static bool every_window_has_a_pixel(int out, int stride, int pad, int kernel, int dilation, int size) {
    for (int i = 0; i < out; ++i) {
        const int64_t start = static_cast<int64_t>(i) * stride - pad;
        if (start >= size) return false;
        const int64_t first = start < 0 ? (-start + dilation - 1) / dilation : 0;
        if (first >= kernel || start + first * dilation >= size) return false;
    }
    return true;
}

bool Checker::clipped_windows() const {
    // Starts of windows are ints in the kernels.
    if ((static_cast<int64_t>(s.out.height) - 1) * s.stride_y > LARGEST || (static_cast<int64_t>(s.out.width) - 1) * s.stride_x > LARGEST ||
        !every_window_has_a_pixel(s.out.height, s.stride_y, s.pad_top, s.kernel_y, s.dilation_y, s.in.height) ||
        !every_window_has_a_pixel(s.out.width, s.stride_x, s.pad_left, s.kernel_x, s.dilation_x, s.in.width))
        return no("a window holds no pixel of in");
    return true;
}

bool Checker::residual() const {
    if (!(s.flags & (BH_RESIDUAL | BH_RESIDUAL_LAST))) return true;
    if ((s.flags & BH_RESIDUAL) && (s.flags & BH_RESIDUAL_LAST)) return no("other is added twice");
    if (s.other.type != s.out.type) return no("other and out have types %d and %d", s.other.type, s.out.type);
    return view(s.other, "other", true) && same(s.other, s.out, "other and out");
}

bool Checker::convolution() const {
    // The first layer reads its inputs one by one, bf16 two by two: they need not fill lanes.
    if (!view(s.in, "in", s.kind != BH_DENSE) || !view(s.out, "out", true) || !window_in_halo() || !residual()) return false;
    if (s.kind != BH_DEPTHWISE && s.out.padded != up(s.out.channels, lanes))
        return no("%d outputs padded to %d", s.out.channels, s.out.padded);
    if (!(s.kind == BH_DEPTHWISE && s.bias == -1) && !weight(s.bias, s.out.padded * int64_t{4}, "bias")) return false;
    const int64_t taps = static_cast<int64_t>(s.kernel_y) * s.kernel_x;
    if (s.kind == BH_DEPTHWISE) {
        if (s.in.channels != s.out.channels || s.in.padded < s.out.padded) return no("%d inputs, %d outputs", s.in.channels, s.out.channels);
        return weight(s.values, s.out.padded * taps * 4, "values");
    }
    if (s.kind == BH_HYBRID) return stream();
    if (s.groups != 1) return no("%d groups", s.groups);
    if (s.vectors != 1 && s.vectors != 2 && s.vectors != 4) return no("%d vectors of outputs", s.vectors);
    const int64_t pair = s.in.type == BH_BF16 ? 2 : 1;
    int64_t inputs = up(s.in.channels, pair), runs = taps;
    if (s.in.pixel == s.in.channels && s.dilation_x == 1) {
        // A row of taps is one run; with an odd number of inputs it ends in the pixel after the window.
        const int64_t run = static_cast<int64_t>(s.kernel_x) * s.in.channels;
        if (run > LARGEST) return no("%d taps of %d inputs", s.kernel_x, s.in.channels);
        inputs = up(run, pair);
        runs = s.kernel_y;
        const int64_t after = (static_cast<int64_t>(s.out.width) - 1) * s.stride_x - s.pad_left + s.kernel_x;
        if (inputs > run && after >= static_cast<int64_t>(s.in.width) + s.in.right)
            return no("a run of %lld inputs ends outside the halo", wide(inputs));
    } else if (s.in.padded < inputs) {
        return no("%d inputs padded to %d", s.in.channels, s.in.padded);
    }
    return weight(s.values, runs * inputs * up(s.out.padded, s.vectors * lanes) * size_of(s.in.type), "values");  // both below 2^25
}

bool Checker::stream() const {
    if (s.slots != 1 && s.slots != 2 && s.slots != 4) return no("%d slots", s.slots);
    if (!within(s.count, 0, INT32_MAX)) return no("%lld items", wide(s.count));
    const int64_t per_slot = lanes * (s.in.type == BH_BF16 ? 2 : 1), cells = s.count * s.slots * per_slot;
    const int64_t groups = s.out.padded / lanes;
    if (!weight(s.values, cells * size_of(s.in.type), "values") || !weight(s.index, cells, "index") ||
        !weight(s.offsets, s.count * 4, "offsets") || !weight(s.first, (groups + 1) * 4, "first"))
        return false;
    const int32_t *first = reinterpret_cast<const int32_t *>(base + s.first);
    if (first[0] != 0 || first[groups] != s.count) return no("items %d to %d of %lld", first[0], first[groups], wide(s.count));
    for (int64_t g = 0; g < groups; ++g)
        if (first[g] > first[g + 1]) return no("outputs %lld: items from %d to %d", wide(g * lanes), first[g], first[g + 1]);
    const uint8_t *index = base + s.index;
    unsigned largest = 0;
    for (int64_t i = 0; i < cells; ++i) largest = index[i] > largest ? index[i] : largest;
    if (largest >= static_cast<unsigned>(per_slot)) return no("index %u of %lld inputs", largest, wide(per_slot));
    if (s.in.type == BH_BF16) {
        // Twice the lanes are loaded, and of a part of a wider map the last of them may lie behind it.
        const int64_t y = (static_cast<int64_t>(s.out.height) - 1) * s.stride_y - s.pad_top + (static_cast<int64_t>(s.kernel_y) - 1) * s.dilation_y;
        const int64_t x = (static_cast<int64_t>(s.out.width) - 1) * s.stride_x - s.pad_left + (static_cast<int64_t>(s.kernel_x) - 1) * s.dilation_x;
        if (y * s.in.row + x * s.in.pixel + s.in.pixel > (h.arena - s.in.offset) / size_of(s.in.type))
            return no("in ends with the arena; a pixel of %d numbers is loaded there", s.in.pixel);
    }
    const int32_t *offsets = reinterpret_cast<const int32_t *>(base + s.offsets);
    for (int64_t i = 0; i < s.count; ++i)
        if (!item(offsets[i])) return no("item %lld reads at %d, outside the window", wide(i), offsets[i]);
    return true;
}

// An item begins at a pixel of the window and what it loads ends inside that pixel.
bool Checker::item(int64_t offset) const {
    if (offset < 0) return false;
    const int64_t y = offset / s.in.row, x = offset % s.in.row / s.in.pixel, c = offset % s.in.row % s.in.pixel;
    return y <= (static_cast<int64_t>(s.kernel_y) - 1) * s.dilation_y && x <= (static_cast<int64_t>(s.kernel_x) - 1) * s.dilation_x &&
           (s.in.type == BH_BF16 ? c + 2 * lanes <= s.in.pixel : c + lanes <= s.in.padded);
}

bool Checker::index(int channels) const {
    if (!weight(s.index, s.out.channels * int64_t{4}, "index")) return false;
    const int32_t *from = reinterpret_cast<const int32_t *>(base + s.index);
    for (int c = 0; c < s.out.channels; ++c)
        if (from[c] < -1 || from[c] >= channels) return no("out %d is channel %d of %d", c, from[c], channels);
    return true;
}

bool Checker::check() {
    if (!within(s.kind, 0, BH_KINDS - 1)) return no("unknown kind %d", s.kind);
    if (!within(s.activation, BH_NONE, BH_SILU)) return no("unknown activation %d", s.activation);
    for (int32_t word : s.reserved)
        if (word) return no("a reserved word is not zero");
    const bool convolves = s.kind == BH_DENSE || s.kind == BH_HYBRID || s.kind == BH_DEPTHWISE;
    const int32_t flags = convolves ? BH_RESIDUAL | BH_RESIDUAL_LAST : s.kind == BH_AVGPOOL ? BH_COUNT_PADDING : 0;
    if (s.flags & ~flags) return no("unknown flags %d", s.flags);
    const bool moves = s.kind == BH_LOAD || s.kind == BH_STORE || s.kind >= BH_GATHER;
    if (moves && s.activation != BH_NONE) return no("activation %d", s.activation);
    if (s.kind != BH_LOAD && s.kind != BH_STORE && s.in.type != s.out.type) return no("in and out have types %d and %d", s.in.type, s.out.type);
    const int type = step_type(s);
    if (type != BH_F32 && type != BH_BF16) return no("unknown type %d", type);
    if (!kernels.of[s.kind][type]) return no("no kernel for %s", type == BH_BF16 ? "bf16" : "f32");
    switch (s.kind) {
        case BH_LOAD:
            if (!view(s.out, "out", false)) return false;
            if (s.out.channels != h.channels || s.out.height != h.height || s.out.width != h.width)
                return no("images are %d x %d x %d, out is %d x %d x %d", h.channels, h.height, h.width, s.out.channels, s.out.height, s.out.width);
            return true;
        case BH_STORE:
            if (!view(s.in, "in", false)) return false;
            if (static_cast<int64_t>(s.in.height) * s.in.width * s.in.channels != h.outputs)
                return no("%d x %d x %d numbers for %d outputs", s.in.channels, s.in.height, s.in.width, h.outputs);
            return true;
        case BH_DENSE:
        case BH_HYBRID:
        case BH_DEPTHWISE:
            return numbers() && convolution();
        case BH_MAXPOOL:
        case BH_AVGPOOL:
            if (!numbers() || !view(s.in, "in", true) || !view(s.out, "out", true) || !clipped_windows()) return false;
            if (s.kind == BH_AVGPOOL && (s.dilation_y != 1 || s.dilation_x != 1)) return no("means take no dilation");
            if (s.in.channels != s.out.channels || s.in.padded < s.out.padded) return no("%d inputs, %d outputs", s.in.channels, s.out.channels);
            return true;
        case BH_GLOBAL:
            if (!view(s.in, "in", true) || !view(s.out, "out", true)) return false;
            if (s.out.height != 1 || s.out.width != 1 || s.in.channels != s.out.channels || s.in.padded < s.out.padded)
                return no("%d inputs, out is %d x %d x %d", s.in.channels, s.out.channels, s.out.height, s.out.width);
            return true;
        case BH_ADD:
        case BH_MULTIPLY: {
            if (!view(s.in, "in", true) || !view(s.other, "other", true) || !view(s.out, "out", true) || !same(s.in, s.out, "in and out"))
                return false;
            if (s.other.type != s.out.type) return no("other and out have types %d and %d", s.other.type, s.out.type);
            bh_view other = s.other;
            if (s.kind == BH_MULTIPLY && other.height == 1 && other.width == 1) {
                other.height = s.out.height;
                other.width = s.out.width;
            }
            return same(other, s.out, "other and out");
        }
        case BH_SCALE:
            if (!view(s.in, "in", true) || !view(s.out, "out", true) || !same(s.in, s.out, "in and out")) return false;
            return weight(s.values, s.out.padded * int64_t{4}, "values") && (s.bias == -1 || weight(s.bias, s.out.padded * int64_t{4}, "bias"));
        case BH_UNARY:
        case BH_SOFTMAX:
            return view(s.in, "in", true) && view(s.out, "out", true) && same(s.in, s.out, "in and out");
        case BH_GATHER:
            if (!numbers() || !view(s.in, "in", true) || !view(s.out, "out", true)) return false;
            if ((static_cast<int64_t>(s.out.height) - 1) * s.stride_y >= s.in.height || (static_cast<int64_t>(s.out.width) - 1) * s.stride_x >= s.in.width)
                return no("every %d x %d-th pixel of in does not make %d x %d", s.stride_y, s.stride_x, s.out.height, s.out.width);
            return index(s.in.channels);
        case BH_COPY:
            if (!view(s.in, "in", false) || !view(s.out, "out", false)) return false;
            if (s.in.height != s.out.height || s.in.width != s.out.width || s.in.channels != s.out.channels)
                return no("in is %d x %d x %d, out %d x %d x %d", s.in.channels, s.in.height, s.in.width, s.out.channels, s.out.height, s.out.width);
            return true;
        default:  // BH_FLATTEN
            if (!view(s.in, "in", true) || !view(s.out, "out", true)) return false;
            if (s.out.height != 1 || s.out.width != 1 || static_cast<int64_t>(s.in.height) * s.in.width * s.in.channels != s.out.channels)
                return no("%d x %d x %d numbers, out has %d", s.in.channels, s.in.height, s.in.width, s.out.channels);
            return true;
    }
}

}  // namespace

bool check_step(const bh_header &header, const bh_step &step, const unsigned char *weights, const Kernels &kernels, int number,
                const Complaint &complaint) {
    return Checker(header, step, weights, kernels, number, complaint).check();
}

double step_work(const bh_step &s, int lanes) {
    const bool stores = s.kind == BH_STORE;
    const bh_view &v = stores || s.kind == BH_GLOBAL ? s.in : s.out;
    const double vectors = static_cast<double>(v.height) * v.width * v.padded / lanes;
    switch (s.kind) {
        case BH_DENSE:
            return vectors * s.kernel_y * s.kernel_x * s.in.channels;
        case BH_HYBRID:
            return static_cast<double>(v.height) * v.width * static_cast<double>(s.count) * s.slots;
        case BH_DEPTHWISE:
        case BH_MAXPOOL:
        case BH_AVGPOOL:
            return vectors * s.kernel_y * s.kernel_x;
        case BH_LOAD:
        case BH_STORE:
        case BH_GATHER:
        case BH_FLATTEN:
        case BH_SOFTMAX:
            return vectors * lanes;
        default:
            return vectors * 2;
    }
}

}  // namespace billhook
