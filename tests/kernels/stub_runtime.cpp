// stub_runtime.cpp: the four functions of CuPy's own that ask the CUDA runtime, as far as loading and launching kernels
// needs them. The last argument of those that Python may call says that a subclass need not be looked at.
#include <Python.h>

extern "C" {

int current = 0;
int num_devices = 2;

int getDevice(int) { return current; }
int getDeviceCount(int) { return num_devices; }
PyObject* setDevice(int index, int) {
    if (index < 0 || index >= num_devices) return PyErr_Format(PyExc_RuntimeError, "no device %d", index);
    current = index;
    Py_RETURN_NONE;
}
PyObject* _ensure_context() { Py_RETURN_NONE; }
}
