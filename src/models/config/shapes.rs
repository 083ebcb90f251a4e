//! What the shapes of stored tensors tell about the encoders, as fields of their configs. Head dim is 64 in both.

use serde_json::{Map, Value};

use super::Shapes;

const TOWER: &str = "model.vision_tower.vision_tower";
const AUDIO: &str = "model.audio_encoder";

/// Layers `{prefix}.0`, `.1`, … whose tensor `what` is there.
fn layers(shapes: Shapes<'_>, prefix: &str, what: &str) -> usize {
    (0..).take_while(|n| shapes(&format!("{prefix}.{n}.{what}")).is_some()).count()
}

/// Fields of `vision_config`; empty when there is no vision tower.
pub(super) fn vision(shapes: Shapes<'_>) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |key: &str, value: usize| fields.insert(key.to_owned(), value.into());
    let patch = shapes(&format!("{TOWER}.embeddings.patch_embedding.weight"));
    let positions = shapes(&format!("{TOWER}.embeddings.position_embedding"));
    if let Some(&[hidden, _, _, patch]) = patch.as_deref() {
        set("hidden_size", hidden);
        set("patch_size", patch);
        if let Some(&[_, tokens, _]) = positions.as_deref() {
            set("image_size", tokens.saturating_sub(1).isqrt().saturating_mul(patch));
        }
    }
    let prefix = format!("{TOWER}.encoder.layers");
    if let Some(&[mlp, _]) = shapes(&format!("{prefix}.0.mlp.fc1.weight")).as_deref() {
        set("intermediate_size", mlp);
        set("num_hidden_layers", layers(shapes, &prefix, "mlp.fc1.weight"));
    }
    fields
}

/// Fields of `audio_config`; empty when there is no audio encoder.
pub(super) fn audio(shapes: Shapes<'_>) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |key: &str, value: usize| fields.insert(key.to_owned(), value.into());
    let core = shapes(&format!("{AUDIO}.encoder.enc.0.core.out.0.weight"));
    if let Some(&[hidden, flat]) = core.as_deref()
        && hidden > 0
    {
        set("hidden_size", hidden);
        // Two convolutions leave 19 bands of 79 to 82 bins: of such a range, the multiple of four.
        set("input_dim", (flat / hidden).saturating_add(1).saturating_mul(4));
    }
    if let Some(&[bins]) = shapes(&format!("{AUDIO}.encoder.global_cmvn.mean")).as_deref() {
        set("input_dim", bins);
    }
    let prefix = format!("{AUDIO}.encoder.enc.1.encoders");
    if let Some(&[mlp, _]) = shapes(&format!("{prefix}.0.feed_forward.w_1.weight")).as_deref() {
        set("intermediate_size", mlp);
        set("num_hidden_layers", layers(shapes, &prefix, "feed_forward.w_1.weight"));
    }
    if let Some(&[_, _, kernel]) = shapes(&format!("{AUDIO}.adpter.conv1d2.weight")).as_deref() {
        set("adapter_kernel_size", kernel);
    }
    fields
}
