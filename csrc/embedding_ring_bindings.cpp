// Python bindings of the ring: waits that Ctrl-C can end, and slots that go back however Python drops them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "embedding_ring.h"
#include "stream_copy.h"
#ifdef ANCE_FAST_WITH_CUDA
#include "cuda/ring_copies.h"
#endif

namespace py = pybind11;

namespace ance_fast {
namespace {

constexpr int64_t kCachedRing = int64_t{1} << 25;  // bytes; larger rings are filled past the cache

// What waits on the ring runs in slices without the GIL, and between them looks for Ctrl-C. `attempt` waits for as long
// as it is told; what it has got is kept whatever the clock says.
template <typename Attempt>
RingResult wait_in_slices(const std::optional<double>& seconds, const Attempt& attempt) {
  using Clock = std::chrono::steady_clock;
  using std::chrono::nanoseconds;
  constexpr nanoseconds kSlice = std::chrono::milliseconds(50);
  constexpr double kForever = 1e9;  // more would overflow the clock
  const bool bounded = seconds && *seconds < kForever;
  const auto end = Clock::now() + nanoseconds(bounded ? static_cast<int64_t>(*seconds * 1e9) : 0);
  while (true) {
    const nanoseconds left = bounded ? std::max<nanoseconds>(end - Clock::now(), nanoseconds(0)) : kSlice;
    const bool last = bounded && left < kSlice;
    RingResult result;
    {
      py::gil_scoped_release release;
      result = attempt(last ? left : kSlice);
    }
    if (result != RingResult::kTimeout || last) return result;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

const char* result_name(RingResult result) {
  switch (result) {
    case RingResult::kTimeout: return "timeout";
    case RingResult::kEnded: return "ended";
    case RingResult::kFailed: return "failed";
    default: return "done";
  }
}

const char* state_name(SlotState state) {
  switch (state) {
    case SlotState::kFilling: return "filling";
    case SlotState::kReady: return "ready";
    case SlotState::kDraining: return "draining";
    default: return "free";
  }
}

// A slot in the hands of Python. Dropped in any way, by an interrupt between two instructions too, it goes back.
struct RingTicket {
  std::shared_ptr<EmbeddingRing> ring;
  py::dtype dtype;
  int64_t slot = -1;  // -1: it has gone back

  // A view that keeps the ring's memory for as long as it exists itself.
  py::array view(int64_t rows) const {
    if (slot < 0) throw py::value_error("the slot has gone back to the ring");
    auto* owner = new std::shared_ptr<EmbeddingRing>(ring);
    const py::capsule base(owner, [](void* held) { delete static_cast<std::shared_ptr<EmbeddingRing>*>(held); });
    return py::array(dtype, std::vector<py::ssize_t>{rows, ring->shape().dim}, ring->data(slot), base);
  }
};

// A Python object in the hands of the engine, which lets go of it in any thread, with or without the GIL.
std::shared_ptr<void> keep(const py::object& object) {
  return {new py::object(object), [](void* held) {
            const py::gil_scoped_acquire acquire;
            delete static_cast<py::object*>(held);
          }};
}

struct FillTicket : RingTicket {
  ~FillTicket() { abandon(); }
  void abandon() {
    if (slot < 0) return;
    const int64_t given_back = std::exchange(slot, -1);
    const py::gil_scoped_release release;  // it may wait for a device
    ring->abandon(given_back);
  }

  // The rows at a host address; the caller answers for their number and dtype.
  void copy(uintptr_t address, int64_t first, int64_t rows) const {
    const RingShape& shape = ring->shape();
    if (slot < 0 || first < 0 || rows < 0 || first > shape.rows - rows) throw py::index_error("rows outside the slot");
    const int64_t row_bytes = shape.dim * shape.element_bytes;
    void* const to = static_cast<unsigned char*>(ring->data(slot)) + first * row_bytes;
    const auto* from = reinterpret_cast<const void*>(address);
    const auto bytes = static_cast<size_t>(rows * row_bytes);
    const py::gil_scoped_release release;
    // The consumers read the slot next, from the cache if the ring fits there beside all else. If not, it would only
    // push out what the producer computes with.
    if (shape.slots * shape.rows * row_bytes > kCachedRing) {
      copy_past_cache(to, from, bytes);
    } else {
      std::memcpy(to, from, bytes);
    }
  }

  void copy_from_device(uintptr_t address, int64_t first, int64_t rows, int device, uintptr_t stream,
                        const py::object& owner) const {
    const DeviceSource source{reinterpret_cast<const void*>(address), device, reinterpret_cast<void*>(stream),
                              keep(owner)};
    const py::gil_scoped_release release;
    ring->copy_from_device(slot, first, rows, source);
  }
};

struct DrainTicket : RingTicket {
  int64_t consumer = 0;
  SlotContent content{};
  ~DrainTicket() { release(); }
  void release() {
    if (slot >= 0) ring->release(consumer, std::exchange(slot, -1));
  }

  void copy_to(py::array& target) const {
    if (slot < 0) throw py::value_error("the slot has gone back to the ring");
    const py::ssize_t bytes = content.rows * ring->shape().dim * ring->shape().element_bytes;
    if (!(target.flags() & py::array::c_style) || target.nbytes() != bytes) {
      throw py::value_error("the target must be C-contiguous and as large as the rows");
    }
    void* const to = target.mutable_data();
    const void* const from = ring->data(slot);
    const py::gil_scoped_release release;
    copy_past_cache(to, from, static_cast<size_t>(bytes));
  }
};

struct BoundRing {
  std::shared_ptr<EmbeddingRing> engine;
  py::dtype dtype;
};

#ifdef ANCE_FAST_WITH_CUDA
constexpr bool kCopiesFromCuda = true;
#else
constexpr bool kCopiesFromCuda = false;
std::unique_ptr<DeviceCopies> cuda_copies(int64_t) {
  return nullptr;
}
#endif

// Its memory is filled with pages at the begin and its copies are waited for at the end, both without the GIL.
std::shared_ptr<EmbeddingRing> make_ring(const RingShape& shape, bool page_locked) {
  const py::gil_scoped_release release;
  return {new EmbeddingRing(shape, cuda_copies(shape.slots), page_locked),
          [](EmbeddingRing* ring) {
            if (PyGILState_Check() == 0) return delete ring;
            const py::gil_scoped_release waiting;
            delete ring;
          }};
}

}  // namespace

void bind_embedding_ring(py::module_& m) {
  py::class_<FillTicket>(m, "FillTicket")
      .def("view", [](const FillTicket& self) { return self.view(self.ring->shape().rows); })
      .def(
          "publish",
          [](FillTicket& self, int64_t rows, int64_t tag) {
            const RingResult result = self.ring->publish(self.slot, rows, tag);
            self.slot = -1;
            return result_name(result);
          },
          py::arg("rows"), py::arg("tag"))
      .def("copy", &FillTicket::copy, py::arg("address"), py::arg("first"), py::arg("rows"))
      .def("copy_from_device", &FillTicket::copy_from_device, py::arg("address"), py::arg("first"), py::arg("rows"),
           py::arg("device"), py::arg("stream"), py::arg("owner"))
      .def("abandon", &FillTicket::abandon);

  py::class_<DrainTicket>(m, "DrainTicket")
      .def_property_readonly("rows", [](const DrainTicket& self) { return self.content.rows; })
      .def_property_readonly("tag", [](const DrainTicket& self) { return self.content.tag; })
      .def_property_readonly("sequence", [](const DrainTicket& self) { return self.content.sequence; })
      .def("view", [](const DrainTicket& self) { return self.view(self.content.rows); })
      .def("copy_to", &DrainTicket::copy_to, py::arg("target"))
      .def("release", &DrainTicket::release);

  py::class_<BoundRing> ring(m, "EmbeddingRing");
  ring.attr("copies_from_cuda") = kCopiesFromCuda;
  ring
      .def(py::init([](int64_t slots, int64_t rows, int64_t dim, const py::dtype& dtype, int64_t consumers,
                       bool page_locked) {
             const RingShape shape{slots, rows, dim, static_cast<int64_t>(dtype.itemsize()), consumers};
             return new BoundRing{make_ring(shape, page_locked), dtype};
           }),
           py::kw_only(), py::arg("slots"), py::arg("rows"), py::arg("dim"), py::arg("dtype"), py::arg("consumers"),
           py::arg("page_locked") = false)
      .def(
          "acquire",
          [](const BoundRing& self, const std::optional<double>& timeout) -> py::object {
            auto ticket = std::make_unique<FillTicket>();
            ticket->ring = self.engine;
            ticket->dtype = self.dtype;
            const RingResult result = wait_in_slices(
                timeout, [&](std::chrono::nanoseconds wait) { return ticket->ring->acquire(wait, &ticket->slot); });
            if (result != RingResult::kDone) return py::str(result_name(result));
            return py::cast(std::move(ticket));
          },
          py::arg("timeout"))
      .def(
          "take",
          [](const BoundRing& self, int64_t consumer, const std::optional<double>& timeout) -> py::object {
            auto ticket = std::make_unique<DrainTicket>();
            ticket->ring = self.engine;
            ticket->dtype = self.dtype;
            ticket->consumer = consumer;
            const RingResult result = wait_in_slices(timeout, [&](std::chrono::nanoseconds wait) {
              return ticket->ring->take(consumer, wait, &ticket->slot, &ticket->content);
            });
            if (result != RingResult::kDone) return py::str(result_name(result));
            return py::cast(std::move(ticket));
          },
          py::arg("consumer"), py::arg("timeout"))
      .def("close", [](const BoundRing& self) { self.engine->close(); })
      .def("fail", [](const BoundRing& self) { self.engine->fail(); })
      .def_property_readonly("closed", [](const BoundRing& self) { return self.engine->closed(); })
      .def_property_readonly("failed", [](const BoundRing& self) { return self.engine->failed(); })
      .def_property_readonly("copy_failure", [](const BoundRing& self) { return self.engine->copy_failure(); })
      .def_property_readonly("copy_seconds", [](const BoundRing& self) { return self.engine->copy_seconds(); })
      .def_property_readonly("states", [](const BoundRing& self) {
        std::vector<std::string> names;
        for (const SlotState state : self.engine->states()) names.emplace_back(state_name(state));
        return names;
      });
}

}  // namespace ance_fast
