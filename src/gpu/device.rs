//! A GPU: finding it, its facts, its context.

use cudarc::driver::{result, sys};
use serde::Serialize;

use super::driver::check;
use super::embedded;
use crate::core::{Error, Result};

/// What a GPU is, as `vivace doctor` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DeviceFacts {
    pub ordinal: usize,
    pub name: String,
    /// Compute capability: (9, 0) for Hopper.
    pub sm: (u32, u32),
    pub sm_count: u32,
    pub l2_bytes: u64,
    /// Shared memory that one CTA may take after opting in.
    pub smem_bytes: u64,
    /// Shared memory of one SM.
    pub smem_per_sm_bytes: u64,
    pub total_bytes: u64,
}

/// The driver and every GPU it shows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Driver {
    /// `13.0`: the newest CUDA that the driver supports.
    pub cuda: String,
    pub devices: Vec<DeviceFacts>,
}

/// An opened GPU. Its primary context is current on the thread that opened it.
pub struct Device {
    pub facts: DeviceFacts,
    arch: u32,
    context: sys::CUcontext,
    handle: sys::CUdevice,
}

// SAFETY: the handles are plain values for the driver, whose calls may come from any thread at any time; nothing in here
// changes before the drop.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// The oldest architecture with the asynchronous copies and tensor-core shapes that the kernels use.
const MIN_SM: (u32, u32) = (8, 0);

impl Driver {
    /// Loads the driver and lists the GPUs; `Err` says what is missing.
    pub fn probe() -> Result<Driver> {
        // SAFETY: loading libcuda runs its initialisers, which the driver allows at any time.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::runtime("no CUDA driver: libcuda.so was not found"));
        }
        check(result::init(), || "starting the CUDA driver".into())?;
        let mut version = 0;
        // SAFETY: the driver is initialised and writes one int.
        let got = unsafe { sys::cuDriverGetVersion(&mut version) };
        check(got.result(), || "asking for the driver's version".into())?;
        let count = check(result::device::get_count(), || "counting GPUs".into())?;
        let devices = (0..count as usize).map(facts).collect::<Result<_>>()?;
        Ok(Driver { cuda: format!("{}.{}", version / 1000, version % 1000 / 10), devices })
    }
}

fn facts(ordinal: usize) -> Result<DeviceFacts> {
    let doing = || format!("asking GPU {ordinal} for its properties");
    let handle = check(result::device::get(ordinal as i32), doing)?;
    // SAFETY: `handle` came from the driver just now.
    let attribute = |a| check(unsafe { result::device::get_attribute(handle, a) }, doing);
    use sys::CUdevice_attribute as A;
    let number = |a| Ok::<_, Error>(attribute(a)?.max(0) as u32);
    Ok(DeviceFacts {
        ordinal,
        name: check(result::device::get_name(handle), doing)?,
        sm: (
            number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        sm_count: number(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: number(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        smem_bytes: number(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.into(),
        smem_per_sm_bytes: number(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?.into(),
        // SAFETY: as above.
        total_bytes: check(unsafe { result::device::total_mem(handle) }, doing)? as u64,
    })
}

impl Device {
    /// Opens GPU `ordinal` and makes its context current on this thread.
    pub fn open(ordinal: usize) -> Result<Device> {
        let driver = Driver::probe()?;
        let Some(facts) = driver.devices.get(ordinal).cloned() else {
            let n = driver.devices.len();
            crate::bail_input!("cuda:{ordinal}: this machine has {n} GPU{}", if n == 1 { "" } else { "s" });
        };
        if facts.sm < MIN_SM {
            crate::bail_input!(
                "cuda:{ordinal}: {} is sm_{}{}; the kernels want sm_{}{} or newer",
                facts.name,
                facts.sm.0,
                facts.sm.1,
                MIN_SM.0,
                MIN_SM.1
            );
        }
        let doing = || format!("opening cuda:{ordinal}");
        let handle = check(result::device::get(ordinal as i32), doing)?;
        // SAFETY: `handle` is a device of this driver; the context is released in Drop.
        let context = check(unsafe { result::primary_ctx::retain(handle) }, doing)?;
        let device = Device { arch: embedded::arch(facts.sm).unwrap_or(0), facts, context, handle };
        device.make_current()?;
        Ok(device)
    }

    /// Makes the context current on the calling thread: what takes memory or enqueues wants that.
    pub fn make_current(&self) -> Result<()> {
        // SAFETY: the context is retained until this device is dropped.
        check(unsafe { result::ctx::set_current(self.context) }, || "making the context current".into())
    }

    /// The architecture whose kernels run here, see [`embedded::arch`]: 90 for Hopper, 0 where this binary has none.
    pub fn arch(&self) -> u32 {
        self.arch
    }

    pub fn sm_count(&self) -> usize {
        self.facts.sm_count as usize
    }

    /// `GPU-` and 32 hexadecimal digits: the name that NVML knows it by, whatever `CUDA_VISIBLE_DEVICES` numbers it.
    pub fn uuid(&self) -> Result<String> {
        let uuid = check(result::device::get_uuid(self.handle), || "asking for the UUID of the GPU".into())?;
        Ok(uuid_text(uuid.bytes.map(|b| b as u8)))
    }

    /// (free, total) bytes of device memory.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = check(result::mem_get_info(), || "asking for free memory".into())?;
        Ok((free as u64, total as u64))
    }
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = "GPU-".to_owned();
    for (i, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained once in open(). Nothing can be done about an error at this point.
        let _ = unsafe { result::primary_ctx::release(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_written_as_nvml_writes_them() {
        let bytes =
            [0xc8, 0x6d, 0x4a, 0x0f, 0x00, 0x9b, 0x4e, 0xff, 0x80, 0x01, 0x10, 0x32, 0x54, 0x76, 0x98, 0xba];
        assert_eq!(uuid_text(bytes), "GPU-c86d4a0f-009b-4eff-8001-1032547698ba");
    }
}
