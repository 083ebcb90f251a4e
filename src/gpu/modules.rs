//! Kernels by file and symbol, loaded on first use.

use std::cell::RefCell;
use std::collections::HashMap;

use cudarc::driver::{result, sys};

use super::driver::check;
use super::embedded;
use crate::core::{Error, Result};

/// A loaded kernel and its block size.
#[derive(Clone, Copy)]
pub struct Function {
    pub(super) raw: sys::CUfunction,
    pub(super) threads: u32,
    pub(super) name: &'static str,
}

// SAFETY: the handle belongs to the module's context, to no thread.
unsafe impl Send for Function {}

/// The modules of one device.
pub struct Modules {
    sm: (u32, u32),
    loaded: RefCell<HashMap<&'static str, sys::CUmodule>>,
    functions: RefCell<HashMap<String, (Function, usize)>>,
}

// SAFETY: as for a function; the cells go from thread to thread whole, for it is not Sync.
unsafe impl Send for Modules {}

/// Shared memory that a kernel may use without opting in.
const SMEM_WITHOUT_OPT_IN: usize = 48 << 10;

impl Modules {
    pub fn new(sm: (u32, u32)) -> Modules {
        Modules { sm, loaded: RefCell::default(), functions: RefCell::default() }
    }

    fn module(&self, file: &'static str) -> Result<sys::CUmodule> {
        if let Some(module) = self.loaded.borrow().get(file) {
            return Ok(*module);
        }
        let image = embedded::find(file, self.sm)?;
        // SAFETY: the image is a whole cubin or zero-terminated PTX, as the build made it.
        let module = check(unsafe { result::module::load_data(image.bytes.as_ptr().cast()) }, || {
            format!("loading kernels/{file}.cu for sm_{}{}", self.sm.0, self.sm.1)
        })?;
        self.loaded.borrow_mut().insert(file, module);
        Ok(module)
    }

    /// The kernel `symbol` of `file`, allowed to use `smem_bytes` of dynamic shared memory. `params_bytes` is compared
    /// with what the kernel file exports.
    pub fn function(
        &self,
        file: &'static str,
        symbol: &str,
        params_bytes: usize,
        smem_bytes: usize,
    ) -> Result<Function> {
        if let Some((function, allowed)) = self.functions.borrow().get(symbol)
            && *allowed >= smem_bytes
        {
            return Ok(*function);
        }
        let module = self.module(file)?;
        let c_name =
            |s: &str| std::ffi::CString::new(s).map_err(|_| Error::runtime(format!("{s:?}: not a symbol")));
        let at = || format!("kernels/{file}.cu: {symbol}");
        // SAFETY: the module is loaded and never unloaded before the process ends.
        let raw = check(unsafe { result::module::get_function(module, c_name(symbol)?) }, at)?;
        // SAFETY: as above.
        let (info, bytes) =
            check(unsafe { result::module::get_global(module, c_name(&format!("{symbol}_info"))?) }, at)?;
        let mut words = [0u32; 2];
        if bytes != size_of_val(&words) {
            crate::bail_runtime!("{}: its info symbol has {bytes} bytes, 8 expected", at());
        }
        // SAFETY: the symbol holds exactly two u32.
        check(unsafe { result::memcpy_dtoh_sync(&mut words, info) }, at)?;
        let [kernel_bytes, threads] = words;
        if kernel_bytes as usize != params_bytes {
            crate::bail_runtime!(
                "{}: takes {kernel_bytes} bytes of parameters, its launcher gives {params_bytes}",
                at()
            );
        }
        if smem_bytes > SMEM_WITHOUT_OPT_IN {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `raw` is a function of a loaded module.
            check(
                unsafe { result::function::set_function_attribute(raw, attribute, smem_bytes as i32) },
                || format!("{}: {smem_bytes} bytes of shared memory", at()),
            )?;
        }
        let known = self.functions.borrow().get(symbol).map(|(f, _)| f.name);
        // Names live as long as the modules, which is as long as the process; there are some hundreds.
        let name = known.unwrap_or_else(|| Box::leak(symbol.to_owned().into_boxed_str()));
        let function = Function { raw, threads, name };
        self.functions.borrow_mut().insert(symbol.to_owned(), (function, smem_bytes));
        Ok(function)
    }
}
