//! What the model sees and hears, from files or memory to the arrays that its encoders take: pictures to normalised
//! tiles, frames of a video to tiles, sounds to log-mel frames. All of it runs on the CPU and needs no model.

pub mod audio;
pub mod bicubic;
pub mod fbank;
pub mod image;
pub mod pipe;
pub mod resample;
pub mod tiles;
pub mod video;
pub mod wav;
