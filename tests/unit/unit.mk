# unit.mk: what single unit test programs need beside the product's libraries.
#
# test_http brings a TLS server of its own. private: a prerequisite must not see
# another set of flags than everybody else's.
$(BUILD)/unit/test_http: private LIBS += -lssl
