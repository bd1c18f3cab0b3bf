// The Python side's way to genie.h: one function or class per name there, nothing of its own.
//
// Purpose: everything else that a Python program does with the device goes through PyTorch itself.
// Thread-safety: functions that may wait release the interpreter's lock.
#include <ATen/Context.h>
#include <genie/genie.h>
#include <pybind11/stl.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <optional>
#include <sstream>
#include <string>

namespace py = pybind11;

namespace {

using Released = py::call_guard<py::gil_scoped_release>;

void add_stats(py::module_& module) {
  py::class_<genie::OpTime>(module, "OpTime")
      .def_readonly("calls", &genie::OpTime::calls)
      .def_readonly("dispatch_ns", &genie::OpTime::dispatch_ns)
      .def_readonly("shape_ns", &genie::OpTime::shape_ns)
      .def_readonly("record_ns", &genie::OpTime::record_ns)
      .def_readonly("plan_ns", &genie::OpTime::plan_ns)
      .def_property_readonly("total_ns", &genie::OpTime::total_ns);
  py::class_<genie::Stats>(module, "Stats")
      .def_readonly("captured_ops", &genie::Stats::captured_ops)
      .def_readonly("executed_ops", &genie::Stats::executed_ops)
      .def_readonly("pruned_ops", &genie::Stats::pruned_ops)
      .def_readonly("client_fallbacks", &genie::Stats::client_fallbacks)
      .def_readonly("captured_by_op", &genie::Stats::captured_by_op)
      .def_readonly("executed_by_op", &genie::Stats::executed_by_op)
      .def_readonly("time_by_op", &genie::Stats::time_by_op)
      .def_readonly("flushes", &genie::Stats::flushes)
      .def_readonly("flush_reasons", &genie::Stats::flush_reasons)
      .def_readonly("templates_registered", &genie::Stats::templates_registered)
      .def_readonly("template_hits", &genie::Stats::template_hits)
      .def_readonly("template_misses", &genie::Stats::template_misses)
      .def_readonly("templates_forgotten", &genie::Stats::templates_forgotten)
      .def_readonly("shapes_cached", &genie::Stats::shapes_cached)
      .def_readonly("shapes_own", &genie::Stats::shapes_own)
      .def_readonly("shapes_meta", &genie::Stats::shapes_meta)
      .def_readonly("shapes_from_node", &genie::Stats::shapes_from_node)
      .def_readonly("submissions", &genie::Stats::submissions)
      .def_readonly("message_bytes", &genie::Stats::message_bytes)
      .def_readonly("uploads", &genie::Stats::uploads)
      .def_readonly("upload_bytes", &genie::Stats::upload_bytes)
      .def_readonly("upload_known_bytes", &genie::Stats::upload_known_bytes)
      .def_readonly("snapshot_bytes", &genie::Stats::snapshot_bytes)
      .def_readonly("upload_copied_bytes", &genie::Stats::upload_copied_bytes)
      .def_readonly("fetches", &genie::Stats::fetches)
      .def_readonly("fetch_bytes", &genie::Stats::fetch_bytes)
      .def_readonly("fetch_copied_bytes", &genie::Stats::fetch_copied_bytes)
      .def_readonly("user_copied_bytes", &genie::Stats::user_copied_bytes)
      .def_readonly("last_failures", &genie::Stats::last_failures)
      .def("__str__", &genie::Stats::to_string);
  module.def("set_timing", &genie::set_timing, py::arg("timing"));
  module.def("is_timing", &genie::is_timing);
}

void add_graph(py::module_& module) {
  py::class_<genie::GraphValue>(module, "GraphValue")
      .def_readonly("dtype", &genie::GraphValue::dtype)
      .def_readonly("sizes", &genie::GraphValue::sizes)
      .def_readonly("storage", &genie::GraphValue::storage);
  py::class_<genie::GraphNode>(module, "GraphNode")
      .def_readonly("id", &genie::GraphNode::id)
      .def_readonly("op", &genie::GraphNode::op)
      .def_readonly("inputs", &genie::GraphNode::inputs)
      .def_readonly("outputs", &genie::GraphNode::outputs)
      .def_readonly("depends_on", &genie::GraphNode::depends_on);
  py::class_<genie::Graph>(module, "Graph")
      .def_readonly("nodes", &genie::Graph::nodes)
      .def_readonly("omitted", &genie::Graph::omitted)
      .def("to_string", &genie::Graph::to_string)
      .def("to_dot", &genie::Graph::to_dot)
      .def("__str__", &genie::Graph::to_string)
      .def("__len__", [](const genie::Graph& graph) { return graph.nodes.size(); });
}

void add_capture(py::module_& module) {
  py::class_<genie::Capture>(module, "Capture")
      .def(py::init([](const std::optional<at::Device>& device) {
             const py::gil_scoped_release released;  // it may connect
             return device.has_value() ? std::make_unique<genie::Capture>(*device) : std::make_unique<genie::Capture>();
           }),
           py::arg("device") = py::none())
      .def_property_readonly("device", &genie::Capture::device)
      .def("graph", &genie::Capture::graph, Released())
      .def("end", &genie::Capture::end, Released());
  module.def("is_capturing", &genie::is_capturing);
}

std::string describe_session(const genie::Session& session) {
  std::ostringstream out;
  out << "<genie.Session on node '" << session.node_name() << "' (" << session.transport()
      << "): " << session.device(0);
  if (session.device_count() > 1) out << " to " << static_cast<int>(session.device(session.device_count() - 1).index());
  return out.str() + ">";
}

// A session that Python opened lasts until close() or the end of the process, for programs drop its handle and go on. Leaked:
// the interpreter may be gone by then.
const py::set& open_sessions() {
  static const auto* const kept = new py::set;
  return *kept;
}

void close_session(const py::object& self) {
  auto& session = self.cast<genie::Session&>();
  {
    const py::gil_scoped_release released;
    session.close();
  }
  open_sessions().attr("discard")(self);
}

void add_session(py::module_& module) {
  py::class_<genie::Session>(module, "Session")
      .def("__repr__", &describe_session)
      .def("__enter__", [](py::object self) { return self; })
      .def("__exit__", [](const py::object& self, const py::args&) { close_session(self); })
      .def("device", &genie::Session::device, py::arg("index") = 0)
      .def_property_readonly("device_count", &genie::Session::device_count)
      .def_property_readonly("node_name", &genie::Session::node_name)
      .def_property_readonly("node_threads", &genie::Session::node_threads)
      .def_property_readonly("transport", &genie::Session::transport)
      .def("synchronize", &genie::Session::synchronize, Released())
      .def("stats", &genie::Session::stats, Released())
      .def("close", &close_session);
  module.def(
      "connect",
      [](const std::string& uri, uint64_t connect_timeout_ms, uint64_t progress_timeout_ms, bool busy_polling,
         const std::string& transport, const std::string& token, uint64_t peer_timeout_ms,
         const std::string& rdma_devices) {
        const genie::SessionOptions options{connect_timeout_ms, progress_timeout_ms, busy_polling, transport, token,
                                            peer_timeout_ms,    rdma_devices};
        const auto open = [&] {
          const py::gil_scoped_release released;
          return genie::Session::connect(uri, options);
        };
        py::object session = py::cast(open());
        open_sessions().attr("add")(session);
        return session;
      },
      py::arg("uri"), py::kw_only(), py::arg("connect_timeout_ms") = 10'000, py::arg("progress_timeout_ms") = 30'000,
      py::arg("busy_polling") = false, py::arg("transport") = "auto", py::arg("token") = "",
      py::arg("peer_timeout_ms") = 5'000, py::arg("rdma_devices") = "");
}

void add_tensors(py::module_& module) {
  py::class_<genie::Description>(module, "Description")
      .def_readonly("op", &genie::Description::op)
      .def_readonly("shape", &genie::Description::shape)
      .def_readonly("dtype", &genie::Description::dtype)
      .def_readonly("device", &genie::Description::device)
      .def_readonly("module", &genie::Description::module)
      .def_readonly("state", &genie::Description::state)
      .def("__str__", &genie::Description::to_string);
  module.def("is_remote", &genie::is_remote, py::arg("tensor"));
  module.def("is_materialized", &genie::is_materialized, py::arg("tensor"));
  module.def("describe", &genie::describe, py::arg("tensor"));
  module.def("materialize", &genie::materialize, py::arg("tensor"), Released());
  module.def("synchronize", &genie::synchronize, Released());
  module.def("set_lazy", &genie::set_lazy, py::arg("lazy"));
  module.def("is_lazy", &genie::is_lazy);
  module.def("stats", &genie::stats, Released());
  module.def("graph", &genie::graph, Released());
  // For torch.remote_accelerator.
  module.def("default_generator", [](int index) {
    return at::globalContext().defaultGenerator(
        c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index)));
  });
}

// One result of a shape function: a tensor that looks like it (on "meta"), a list of these, or None for one that is not there.
void add_shape(genie::ShapeCall& call, const py::handle& told) {
  if (told.is_none()) {
    call.add_undefined();
  } else if (THPVariable_Check(told.ptr())) {
    call.add_like(THPVariable_Unpack(told.ptr()));
  } else {
    const auto list = py::cast<py::list>(told);
    call.begin_list(list.size());
    for (const py::handle element : list) add_shape(call, element);
  }
}

bool ask_shapes(const py::function& function, genie::ShapeCall& call) {
  const py::gil_scoped_acquire held;
  py::tuple arguments(call.size());
  for (size_t i = 0; i < call.size(); ++i) arguments[i] = torch::jit::toPyObject(call[i]);
  const py::object told = function(*arguments);
  if (told.is_none()) return false;
  if (py::isinstance<py::tuple>(told)) {
    for (const py::handle result : told) add_shape(call, result);
  } else {
    add_shape(call, told);
  }
  return true;
}

genie::SourceLine ask_source(const py::function& function) {
  if (Py_IsInitialized() == 0) return {};
  const py::gil_scoped_acquire held;
  if (PyEval_GetFrame() == nullptr) return {};  // a thread that is not Python's
  try {
    auto [line, module] = py::cast<std::pair<std::string, std::string>>(function());
    return {std::move(line), std::move(module)};
  } catch (const py::error_already_set&) {
    return {};
  }
}

void add_debugging(py::module_& module) {
  // Functions of the program are kept until the process ends, as the interpreter may be gone by then.
  module.def(
      "register_shape_function",
      [](const std::string& op, const std::optional<py::function>& function) {
        if (!function.has_value()) return genie::register_shape_function(op, {});
        const auto* kept = new py::function(*function);
        genie::register_shape_function(op, [kept](genie::ShapeCall& call) { return ask_shapes(*kept, call); });
      },
      py::arg("op"), py::arg("function"));
  module.def("_set_source_finder", [](const py::function& function) {
    const auto* kept = new py::function(function);
    genie::set_source_finder([kept] { return ask_source(*kept); });
  });
  module.def("set_check_shapes", &genie::set_check_shapes, py::arg("check"));
  module.def("is_checking_shapes", &genie::is_checking_shapes);
  module.def("set_trace_lines", &genie::set_trace_lines, py::arg("trace"));
  module.def("is_tracing_lines", &genie::is_tracing_lines);
}

}  // namespace

PYBIND11_MODULE(genie_native, module) {
  py::register_exception<genie::Error>(module, "Error", PyExc_RuntimeError);
  add_stats(module);
  add_graph(module);
  add_capture(module);
  add_session(module);
  add_tensors(module);
  add_debugging(module);
}
